"""The whole net finetuned by triplets on real faces, from the shipped weights: the way for faces of one's own.

`python -m tripletloss.dataset FACES --config my.py` takes these settings for your lists. Here they are for half of
LFW's people, as in finetune_lfw.py; README.md beside this file has the commands. The project's own config.py explains
the settings.
"""

RUN_FOLDER = '../../runs/face997_triplets'
NET = '../../train.prototxt'
SOLVER = '../../solver.prototxt'
DEPLOY = '../../deploy.prototxt'
STAGES = ['triplet']
WEIGHTS = {'triplet': 'face997.caffemodel'}
FREEZE = {'triplet': ''}                # the whole net learns
BATCHNORM = {'triplet': 'stored'}
FEATURE = {'softmax': 'norm2', 'triplet': 'embedding'}
FEATURE_CACHE = ''

IMAGEPATH = '../../runs/lfw/images'     # a link to LFW's folder of people
TRAIN_LIST = '../../runs/lfw/train.txt'
CROP = 128
IMAGE_SIZE = 64
CROP_JITTER = 0.06
ZOOM_JITTER = 0.1
LIGHT_JITTER = 0.3
GREY_SHARE = 0.1

BATCHES = {'triplet': 'identities'}
BATCH_SIZE = {'triplet': 60}
IMAGES_PER_IDENTITY = 3
SELECTION = 'semi-hard'                 # with 'batch-hard', embeddings would collapse into one point
MARGIN = 0.2

MAX_ITERS = {'triplet': 400}
SNAPSHOT_ITERS = 100
LEARNING_RATE = {'triplet': 0.03}
WEIGHT_DECAY = {'triplet': 0.0005}
SEED = 1
