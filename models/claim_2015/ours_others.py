"""Stage two as this project does it, above softmax.py's frozen feature, on people whom stage one has not seen.

docs/two_stages.md has the commands and what was measured. The project's own config.py explains the settings.
"""

STAGES = ['triplet']
RUN_FOLDER = '../../runs/claim/ours_others'
NET = '../../train.prototxt'
SOLVER = '../../solver.prototxt'
DEPLOY = '../../deploy.prototxt'
WEIGHTS = '../../runs/claim/softmax/softmax_iter_1500.caffemodel'
FREEZE = 'fc7'
BATCHNORM = 'stored'
FEATURE = {'softmax': 'norm2', 'triplet': 'embedding'}
FEATURE_CACHE = '../../runs/features'

IMAGEPATH = '../../runs/claim/faces_others/images/'
TRAIN_LIST = '../../runs/claim/faces_others/list.txt'
HELD_OUT_LIST = ''
IMAGE_SIZE = 64
MIRROR = True

BATCHES = 'identities'
BATCH_SIZE = 120
IMAGES_PER_IDENTITY = 4
SELECTION = 'semi-hard'
MARGIN = 0.4
MAX_ITERS = 300
SNAPSHOT_ITERS = 300
LEARNING_RATE = 0.3
WEIGHT_DECAY = 0.05
WORKERS = 1
SEED = 1
