"""PyInstaller's hook: the files that the package reads, and the modules that it imports by name."""

from whisper_opt.core.pyinstaller.frozen import binary_files, data_files, hidden_modules

datas = data_files()
binaries = binary_files()
hiddenimports = hidden_modules()
