"""``python -m pyrosplice``: the command line."""

from pyrosplice._jobs.command_line import console

if __name__ == "__main__":
    console()
