"""`python -m rdcache` is the command `rdcache`."""

from rdcache.cli import main

if __name__ == "__main__":
    main()
