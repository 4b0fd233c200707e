"""Stage two as in 2015, above softmax.py's frozen feature: anchor batches of 30, rank-paired, a projection of its own.

docs/two_stages.md has the commands and what was measured. The project's own config.py explains the settings.
"""

STAGES = ['triplet']
RUN_FOLDER = '../../runs/claim/original'
NET = '../../models/claim_2015/train.prototxt'
SOLVER = '../../solver.prototxt'
DEPLOY = '../../models/claim_2015/deploy.prototxt'
WEIGHTS = '../../runs/claim/softmax/softmax_iter_1500.caffemodel'
FREEZE = 'fc7'
FEATURE = {'softmax': 'norm2', 'triplet': 'fc9_1'}
FEATURE_CACHE = '../../runs/features'

IMAGEPATH = '../../runs/claim/faces_softmax/images/'
TRAIN_LIST = '../../runs/claim/faces_softmax/list.txt'
HELD_OUT_LIST = ''
IMAGE_SIZE = 64
MIRROR = True

BATCHES = 'anchor'
BATCH_SIZE = 30
SELECTION = 'rank-paired'
MARGIN = 0.2
MAX_ITERS = 3000
SNAPSHOT_ITERS = 3000
LEARNING_RATE = 0.1
WEIGHT_DECAY = 0.0005
WORKERS = 1
SEED = 1
