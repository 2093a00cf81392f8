from . import check as check
from . import colours as colours
from . import objects as objects
from . import polygons as polygons
from . import read as read
from . import write as write
