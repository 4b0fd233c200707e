"""How the shipped model was trained, second part: on from the first part's weights, with stronger augmentation.

README.md beside this file has the commands.
"""

RUN_FOLDER = '../../runs/face997_second'
NET = '../../train.prototxt'
SOLVER = '../../solver.prototxt'
DEPLOY = '../../deploy.prototxt'
WEIGHTS = {'softmax': '../../runs/face997/softmax_iter_7000.caffemodel', 'triplet': ''}
FREEZE = {'softmax': '', 'triplet': 'fc7'}
FEATURE = {'softmax': 'norm2', 'triplet': 'embedding'}
FEATURE_CACHE = '../../runs/features'

IMAGEPATH = '../../runs/faces997/images/'
TRAIN_LIST = '../../runs/faces997/list.txt'
HELD_OUT_LIST = ''
IMAGE_SIZE = 64
MIRROR = True
CROP_JITTER = 0.08
ZOOM_JITTER = 0.15
LIGHT_JITTER = 0.4
GREY_SHARE = 0.25
ROTATION_JITTER = 10.0
COLOUR_JITTER = 0.2
COARSE_SHARE = 0.35

BATCHES = {'softmax': 'shuffled', 'triplet': 'identities'}
BATCH_SIZE = {'softmax': 128, 'triplet': 360}
IMAGES_PER_IDENTITY = 6

COSINE_SCALE = 24.0
COSINE_MARGIN = 0.2
SELECTION = 'batch-hard'
MARGIN = 0.8

MAX_ITERS = {'softmax': 3000, 'triplet': 600}
SNAPSHOT_ITERS = {'softmax': 250, 'triplet': 600}
LEARNING_RATE = {'softmax': 0.03, 'triplet': 1.0}
WORKERS = 1
SEED = 1
