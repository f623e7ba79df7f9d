"""Datasets in object stores and on web servers: read and written by obstore, kept in a cache of whole shards."""
