"""VGG_FACE_16 on the sample that comes with the project; the top-level config.py explains the settings."""

STAGES = ['softmax', 'triplet']
RUN_FOLDER = '../../runs/vgg_face'
NET = 'train.prototxt'
SOLVER = 'solver.prototxt'
DEPLOY = 'deploy.prototxt'

WEIGHTS = {'softmax': '', 'triplet': ''}
FREEZE = {'softmax': '', 'triplet': 'fc7'}
FEATURE = {'softmax': 'norm2', 'triplet': 'embedding'}

IMAGEPATH = '../../data/images/'
TRAIN_LIST = '../../data/train.txt'
HELD_OUT_LIST = '../../data/held_out.txt'
IMAGE_SIZE = 224
MIRROR = True
CROP_JITTER = 0.05

BATCHES = {'softmax': 'shuffled', 'triplet': 'identities'}
BATCH_SIZE = 30
IMAGES_PER_IDENTITY = 5

SELECTION = 'semi-hard'
MARGIN = 0.2

MAX_ITERS = 20000
SNAPSHOT_ITERS = 2000
LEARNING_RATE = {'softmax': 0.0001, 'triplet': 0.001}
DEVICE = 'auto'
SEED = 1
