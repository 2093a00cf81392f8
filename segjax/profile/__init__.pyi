from . import aot as aot
from . import chips as chips
from . import hlo as hlo
from . import largest_batch as largest_batch
from . import model_cost as model_cost
from . import timing as timing
