"""What Sluice knows of the JPEG format itself."""
