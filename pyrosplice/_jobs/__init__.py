"""The jobs of the command line: from a file to a folder of tables, figures and a page that explains them."""
