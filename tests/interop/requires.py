"""Prints what a wheel requires, without its extras. usage: requires.py WHEEL"""

import sys
import zipfile
from email.parser import Parser

archive = zipfile.ZipFile(sys.argv[1])
metadata = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
lines = Parser().parsestr(archive.read(metadata).decode()).get_all("Requires-Dist")
print("\n".join(line for line in lines if "extra ==" not in line))
