"""How the shipped model was trained: 997 synthetic identities x 30 images, softmax stage, then triplet stage.

README.md beside this file has the commands, from rendering the images on.
"""

RUN_FOLDER = '../../runs/face997'
NET = '../../train.prototxt'
SOLVER = '../../solver.prototxt'
DEPLOY = '../../deploy.prototxt'
WEIGHTS = {'softmax': '', 'triplet': '../../runs/face997_softmax.caffemodel'}
FREEZE = {'softmax': '', 'triplet': 'fc7'}
FEATURE = {'softmax': 'norm2', 'triplet': 'embedding'}
FEATURE_CACHE = '../../runs/features'

IMAGEPATH = '../../runs/faces997/images/'
TRAIN_LIST = '../../runs/faces997/list.txt'
HELD_OUT_LIST = ''
IMAGE_SIZE = 64
MIRROR = True
CROP_JITTER = 0.06
ZOOM_JITTER = 0.1
LIGHT_JITTER = 0.3
GREY_SHARE = 0.2

BATCHES = {'softmax': 'shuffled', 'triplet': 'identities'}
BATCH_SIZE = {'softmax': 128, 'triplet': 360}
IMAGES_PER_IDENTITY = 6

COSINE_SCALE = 24.0
COSINE_MARGIN = 0.2
SELECTION = 'batch-hard'
MARGIN = 0.4

MAX_ITERS = {'softmax': 7000, 'triplet': 600}
SNAPSHOT_ITERS = {'softmax': 500, 'triplet': 600}
LEARNING_RATE = {'softmax': 0.06, 'triplet': 0.3}
WEIGHT_DECAY = {'softmax': 0.0005, 'triplet': 0.02}
SEED = 1
