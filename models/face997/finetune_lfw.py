"""Finetuning on real faces: half of LFW's people, the other half to measure on.

`python tools/lfw_halves.py LFW pairs.txt runs/lfw` writes the list; README.md beside this file has the rest.
"""

RUN_FOLDER = '../../runs/face997_lfw'
NET = '../../train.prototxt'
SOLVER = '../../solver.prototxt'
DEPLOY = '../../deploy.prototxt'
STAGES = ['softmax']
WEIGHTS = {'softmax': 'face997.caffemodel'}
FREEZE = {'softmax': ''}
FEATURE = {'softmax': 'norm2', 'triplet': 'embedding'}

IMAGEPATH = '../../runs/lfw/images'     # a link to LFW's folder of people
TRAIN_LIST = '../../runs/lfw/train.txt'
CROP = 128
IMAGE_SIZE = 64
CROP_JITTER = 0.06
ZOOM_JITTER = 0.1
LIGHT_JITTER = 0.3
GREY_SHARE = 0.1

BATCHES = {'softmax': 'shuffled'}
BATCH_SIZE = {'softmax': 128}
COSINE_SCALE = 24.0
COSINE_MARGIN = 0.2

MAX_ITERS = {'softmax': 400}
SNAPSHOT_ITERS = 400
LEARNING_RATE = {'softmax': 0.03}
SEED = 1
