"""The command acla-nas as ``python -m acla_nas``, for launchers such as torchrun."""

from acla_nas.cli import main

if __name__ == "__main__":
    main()
