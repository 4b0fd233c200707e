"""dlib's face network, adapted to faces of your own by triplets on its frozen descriptors.

`make dlib-model` fetches the weights. `tripletloss.dataset FACES --config my.py` writes a copy of this file for your
lists, if FACES were cut by `tripletloss.detect --for dlib_resnet`. The project's own config.py explains the settings,
and models/dlib_resnet/README.md says what they gained.
"""

# The projection alone, which takes seconds. whole_net.py beside this file trains the whole net by triplets. README.md
# says how to train it by softmax.
STAGES = ['triplet']
RUN_FOLDER = '../../runs/dlib_resnet'
NET = 'train.prototxt'
SOLVER = '../../solver.prototxt'
DEPLOY = 'deploy.prototxt'

WEIGHTS = 'dlib_resnet.caffemodel'
FREEZE = {'softmax': '', 'triplet': 'descriptor'}
FEATURE = {'softmax': 'norm2', 'triplet': 'embedding'}
FEATURE_CACHE = '../../runs/features'

IMAGEPATH = '../../data/images/'
TRAIN_LIST = '../../data/train.txt'
HELD_OUT_LIST = '../../data/held_out.txt'
ALIGNMENT = 'dlib_resnet'
IMAGE_SIZE = 150
MIRROR = True

BATCHES = {'softmax': 'shuffled', 'triplet': 'identities'}
BATCH_SIZE = {'softmax': 48, 'triplet': 120}
IMAGES_PER_IDENTITY = 4

SELECTION = 'semi-hard'
MARGIN = 0.1                # as large as many distances of two people: descriptors lie close together

MAX_ITERS = {'softmax': 240, 'triplet': 300}
SNAPSHOT_ITERS = 100
LEARNING_RATE = {'softmax': 0.0001, 'triplet': 0.3}
WEIGHT_DECAY = {'softmax': 0.0005, 'triplet': 0.05}    # 0.02 gains more from 400 people or more
SEED = 1
