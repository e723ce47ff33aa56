"""`python -m polyrhythm` is the console command."""

from polyrhythm.cli import main

if __name__ == "__main__":
    main()
