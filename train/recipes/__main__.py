"""`python -m train.recipes` prints the table of recipes."""

from models.table import markdown_lines
from train.recipes import HEADER, NUMBERS, rows

if __name__ == "__main__":
    print(*markdown_lines(HEADER, iter(rows()), NUMBERS), sep="\n")
