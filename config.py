"""Everything a person edits: what to train, on what, and how.

This file is read, not run: each line gives one name one plain value. Paths are relative to this file. A setting that
differs between the stages is a dictionary with a value per stage.
"""

# --- what to train -----------------------------------------------------------------------------------------------
STAGES = ['softmax', 'triplet']     # trained in this order; `python train.py --stage triplet` trains only that one
RUN_FOLDER = 'runs/sample'          # gets weights, logs, settings and the nets as trained; one folder per run
NET = 'train.prototxt'              # stage rules select its sections; a net without them is trained as it stands
SOLVER = 'solver.prototxt'          # momentum, learning rate policy
DEPLOY = 'deploy.prototxt'          # image -> embedding, used to measure; '': nothing is measured

# Weights (.caffemodel) that a stage starts from. '': it starts fresh; the triplet stage starts from the softmax stage's
# weights in RUN_FOLDER, and fresh only if there are none and STAGES is ['triplet'].
WEIGHTS = {'softmax': 'models/face997/face997.caffemodel', 'triplet': ''}
START_FROM = 'best'                 # these are the softmax stage's 'best' snapshot on HELD_OUT_LIST, or its 'last'
FREEZE = {'softmax': '', 'triplet': 'fc7'}              # layers up to this blob keep their weights; '': all learn
# What BatchNorm normalises with, above frozen layers: 'batch': the statistics of a mini-batch, while it learns those to
# store; 'stored': those of WEIGHTS, which stay as they are, so that an image's embedding depends on no other image.
BATCHNORM = {'softmax': 'batch', 'triplet': 'stored'}
FEATURE = {'softmax': 'norm2', 'triplet': 'embedding'}  # blob of DEPLOY that is measured after a stage

# --- images ------------------------------------------------------------------------------------------------------
IMAGEPATH = 'data/images/'          # folder of the images that the lists name
# Lines `person@file.jpg LABEL`, labels counted from 0. The stages may have the same list; triplets of identities that
# the softmax stage has not seen teach most.
TRAIN_LIST = {'softmax': 'data/train.txt', 'triplet': 'data/triplet.txt'}
HELD_OUT_LIST = 'data/held_out.txt' # identities to measure on, which are never trained on; '': none
ALIGNMENT = 'face997'               # faces are cut as this model takes them (`detect --for`): or 'dlib_resnet'
CROP = 0                            # pixels; use only the central square with this side; 0: use the whole image
IMAGE_SIZE = 64                     # pixels; images are resized to a square with this side
PIXEL_MEANS = [102.9801, 115.9465, 122.7717]    # subtracted from B, G, R (0 to 255)

# Augmentation: how much the training images vary at random.
MIRROR = True                       # flip half of the images horizontally
CROP_JITTER = 0.06                  # shift by up to this share of the side, in each direction
ZOOM_JITTER = 0.1                   # enlarge or shrink by a factor of up to exp(this)
LIGHT_JITTER = 0.3                  # change contrast and brightness by up to this share, up or down
GREY_SHARE = 0.0                    # share of the images converted to grey
ROTATION_JITTER = 5.0               # rotate by up to this many degrees, in either direction
COLOUR_JITTER = 0.0                 # change each of B, G, R by up to this share, up or down
COARSE_SHARE = 0.0                  # share of the images that lose resolution: shrunk, to no less than a quarter of
                                    # IMAGE_SIZE, and enlarged again

BROKEN_IMAGES = 'stop'              # what an unreadable image does: 'stop' ends the run; 'skip' uses another image of
                                    # the same identity instead, and lists the broken one in RUN_FOLDER

# If nothing below a blob learns (FREEZE), the blob is computed once per image, and once per mirror image with MIRROR.
# Training continues from these features, without the other augmentations.
FEATURE_CACHE = 'runs/features'     # folder for the features, shared by runs; '': run the whole net in every iteration
FEATURE_TYPE = 'float32'            # or 'float16', which takes half the space

# --- mini-batches ------------------------------------------------------------------------------------------------
# 'shuffled': single images; 'identities': BATCH_SIZE / IMAGES_PER_IDENTITY identities with that many images each;
# 'anchor': one third copies of an anchor, one third its positives, one third negatives.
BATCHES = {'softmax': 'shuffled', 'triplet': 'identities'}
BATCH_SIZE = {'softmax': 64, 'triplet': 120}    # images
IMAGES_PER_IDENTITY = 4             # images, if BATCHES is 'identities'
PASS_IMAGES = 0                     # images that go through the net at once, for mini-batches larger than memory; must
                                    # divide BATCH_SIZE, or each process's share of it; 0: the whole mini-batch

# --- the softmax stage's classifier ------------------------------------------------------------------------------
COSINE_SCALE = 24.0                 # cosines are multiplied by this before the softmax
COSINE_MARGIN = 0.2                 # a cosine, subtracted for an image's own identity, so that it must win by this much

# --- triplets ----------------------------------------------------------------------------------------------------
# Or 'batch-hard', 'batch-all', 'distance-weighted'; 'rank-paired' needs BATCHES = 'anchor'.
SELECTION = 'semi-hard'
GATHER = True                       # with several processes: select among the images of all of them; False: each
                                    # process selects within its own share of the mini-batch
MARGIN = 0.4                        # a squared distance: how much farther a negative must be than a positive
MINE_ITERS = 0                      # iterations between searches for negatives that are hard among all images, around
                                    # which mini-batches are built; needs cached features; 0: no mining
POSITIVE_CAP = 0.0                  # with MINE_ITERS: ignore positives farther than this (a squared distance), which
                                    # may be mislabelled; 0: no cap

# --- training ----------------------------------------------------------------------------------------------------
MAX_ITERS = {'softmax': 200, 'triplet': 300}            # iterations
SNAPSHOT_ITERS = 100                # iterations between snapshots; there is always one at the end
KEEP_SNAPSHOTS = 5                  # snapshots kept per stage: this many of the latest, and the best; 0: all
LEARNING_RATE = {'softmax': 0.01, 'triplet': 0.3}       # at the start; SOLVER determines how it changes
# Share of itself, times the learning rate, that every learning weight loses in an iteration. In the triplet stage it
# pulls the embedding back to the softmax stage's feature: raise it for few identities, or if the embedding gets worse;
# lower it to about 0.0005 if the CNN is to learn from triplets too (FREEZE ''). None: the weight_decay of SOLVER.
WEIGHT_DECAY = {'softmax': 0.0005, 'triplet': 0.05}
WORKERS = 2                         # processes that read images ahead, for each process that trains; 0: none
DEVICE = 'auto'                     # 'auto': the first GPU if it works, otherwise the CPU; 'cpu'; 'gpu'; a GPU's number
SEED = 1                            # of every random draw
