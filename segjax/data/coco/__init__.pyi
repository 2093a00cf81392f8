from . import objects as objects
from . import read as read
from . import write as write
