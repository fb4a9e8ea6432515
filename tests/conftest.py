import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))   # the tests import the scripts' modules
