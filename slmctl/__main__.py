from slmctl.cli.process import entry

if __name__ == "__main__":
    entry()
