"""Stage one as in 2015: a plain softmax classifier, without cosine or margin, from random weights.

docs/two_stages.md has the commands and what was measured. The project's own config.py explains the settings.
"""

STAGES = ['softmax']
RUN_FOLDER = '../../runs/claim/softmax'
NET = '../../models/claim_2015/train.prototxt'
SOLVER = '../../solver.prototxt'
DEPLOY = '../../models/claim_2015/deploy.prototxt'
FEATURE = 'norm2'

IMAGEPATH = '../../runs/claim/faces_softmax/images/'
TRAIN_LIST = '../../runs/claim/faces_softmax/list.txt'
HELD_OUT_LIST = ''
IMAGE_SIZE = 64
MIRROR = True
CROP_JITTER = 0.06
ZOOM_JITTER = 0.1
LIGHT_JITTER = 0.3
ROTATION_JITTER = 5.0

BATCHES = 'shuffled'
BATCH_SIZE = 64
MAX_ITERS = 1500
SNAPSHOT_ITERS = 500
LEARNING_RATE = 0.03
WEIGHT_DECAY = 0.0005
WORKERS = 1
SEED = 1
