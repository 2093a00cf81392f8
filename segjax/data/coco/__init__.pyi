from . import read as read
from . import write as write
