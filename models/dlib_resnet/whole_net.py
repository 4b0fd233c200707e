"""dlib's face network, all of it finetuned by triplets on faces of your own. It takes minutes.

`make dlib-model` fetches the weights. `tripletloss.dataset FACES` writes lists for FACES cut by `tripletloss.detect
--for dlib_resnet`: name them in a copy of this file. The project's own config.py explains the settings, and
models/dlib_resnet/README.md says what they gained, and on what.
"""

STAGES = ['triplet']
RUN_FOLDER = '../../runs/dlib_resnet_whole'
NET = 'train.prototxt'
SOLVER = '../../solver.prototxt'
DEPLOY = 'deploy.prototxt'

WEIGHTS = 'dlib_resnet.caffemodel'
FREEZE = {'triplet': ''}                # the whole net learns
FEATURE = {'softmax': 'norm2', 'triplet': 'embedding'}
FEATURE_CACHE = ''

IMAGEPATH = '../../data/images/'
TRAIN_LIST = '../../data/train.txt'
HELD_OUT_LIST = '../../data/held_out.txt'
ALIGNMENT = 'dlib_resnet'
IMAGE_SIZE = 150
CROP_JITTER = 0.03
ZOOM_JITTER = 0.05
LIGHT_JITTER = 0.3

BATCHES = {'triplet': 'identities'}
BATCH_SIZE = {'triplet': 48}
IMAGES_PER_IDENTITY = 3
SELECTION = 'semi-hard'
MARGIN = 0.2

MAX_ITERS = {'triplet': 240}
SNAPSHOT_ITERS = 60
LEARNING_RATE = {'triplet': 0.001}
WEIGHT_DECAY = {'triplet': 0.0005}
SEED = 1
