"""PyInstaller hook: data files, and modules that the package imports by name."""

from whisper_opt.core.pyinstaller.frozen import binary_files, data_files, hidden_modules

datas = data_files()
binaries = binary_files()
hiddenimports = hidden_modules()
