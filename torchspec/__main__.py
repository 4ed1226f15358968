from torchspec.cli.main import main

main()
