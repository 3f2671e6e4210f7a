"""`python -m data DIR` says what train.py would find in a folder. A script like train.py: it imports what it needs."""

from common.look import run

if __name__ == "__main__":
    run()
