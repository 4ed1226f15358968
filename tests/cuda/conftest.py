from tests.cuda import guard  # noqa: F401 - says how to start, where pytest was started otherwise
from tests.cuda.h100 import pretend

pretend()

from tests.cuda.lowering import kernels, lowered  # noqa: E402, F401 - fixtures; Inductor is imported when the H100 is there
