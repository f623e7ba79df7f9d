"""`python -m models` prints the table of models."""

from models import table

if __name__ == "__main__":
    for line in table.markdown_lines(table.HEADER, table.rows(), table.NUMBERS):
        print(line, flush=True)
    print("\nand torchvision/<name> for torchvision's classifiers, timm/<name> for timm's")
