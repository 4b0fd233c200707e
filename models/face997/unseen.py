"""The shipped model on pictures like those it was trained on, of 13 identities that it was not trained on.

With this file, `export --config` measures the model's threshold on them. README.md beside it has the command that
rendered them.
"""

RUN_FOLDER = '../../runs/face997'
NET = '../../train.prototxt'
SOLVER = '../../solver.prototxt'
DEPLOY = '../../deploy.prototxt'
FEATURE = {'softmax': 'norm2', 'triplet': 'embedding'}

IMAGEPATH = 'unseen/'
TRAIN_LIST = '../../runs/faces997/list.txt'
HELD_OUT_LIST = 'unseen.txt'
IMAGE_SIZE = 64
