from torchspec.cli import main

main()
