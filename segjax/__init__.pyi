from . import augment as augment
from . import config as config
from . import data as data
from . import infer as infer
from . import losses as losses
from . import metrics as metrics
from . import models as models
from . import nn as nn
from . import objectives as objectives
from . import parallel as parallel
from . import profile as profile
from . import report as report
from . import spec as spec
from . import tasks as tasks
from . import train as train
from . import weights as weights
from .checks import UserError as UserError
from .config import default_config as default_config
from .infer import Predictor as Predictor
from .spec import DatasetSpec as DatasetSpec
from .train.evaluate_predictions import evaluate_predictions as evaluate_predictions
from .train.loop import train_and_evaluate as train_and_evaluate
from .train.restore import evaluate_workdir as evaluate_workdir

__version__: str
