"""What to train, on what, and how: everything a person edits.

This file is read, not run: one plain value a name. Paths are relative to this file. A value that differs between the
stages is a dictionary by stage.
"""

# --- what to train -----------------------------------------------------------------------------------------------
STAGES = ['softmax', 'triplet']     # run in this order; `python train.py --stage triplet` runs one alone
RUN_FOLDER = 'runs/sample'          # weights, resolved prototxts, settings and logs go here; must be new
NET = 'train.prototxt'              # its sections are chosen by stage; without stage rules it is trained as it stands
SOLVER = 'solver.prototxt'          # momentum, weight decay, how the learning rate falls
DEPLOY = 'deploy.prototxt'          # image -> embedding, to measure with; '' measures nothing

# Weights (.caffemodel) to start a stage from. '' starts fresh; for the triplet stage, from the softmax stage's last.
WEIGHTS = {'softmax': 'models/face997/face997.caffemodel', 'triplet': ''}
FREEZE = {'softmax': '', 'triplet': 'fc7'}              # everything up to this blob keeps its weights; '': all learns
FEATURE = {'softmax': 'norm2', 'triplet': 'embedding'}  # the blob of DEPLOY that is measured after a stage

# --- images ------------------------------------------------------------------------------------------------------
IMAGEPATH = 'data/images/'          # the folder that the names in the lists are relative to
TRAIN_LIST = 'data/train.txt'       # lines `person@file.jpg LABEL`, labels from 0
HELD_OUT_LIST = 'data/held_out.txt' # identities that are never trained on, to measure with; '': none
CROP = 0                            # pixels: of an image, the central square of this side is taken; 0: all of it
IMAGE_SIZE = 64                     # pixels: images are stretched to a square of this side
PIXEL_MEANS = [102.9801, 115.9465, 122.7717]    # subtracted from B, G, R (0 to 255)
MIRROR = True                       # show every second image, at random, from left to right
CROP_JITTER = 0.05                  # shift images at random, by up to this share of their side each way
ZOOM_JITTER = 0.0                   # enlarge or shrink them at random, by a factor of up to exp(this)
LIGHT_JITTER = 0.0                  # change contrast and brightness at random, by up to this share each way
GREY_SHARE = 0.0                    # share of the images that are shown in grey
ROTATION_JITTER = 0.0               # turn images at random, by up to so many degrees each way
COLOUR_JITTER = 0.0                 # change each of B, G, R at random, by up to this share each way
COARSE_SHARE = 0.0                  # share of the images that are shown with fewer pixels, as few as a quarter of
                                    # IMAGE_SIZE a side, enlarged again

BROKEN_IMAGES = 'stop'              # at an image that cannot be read; 'skip': another of its identity stands in for it,
                                    # and it is listed in RUN_FOLDER

# Where nothing learns below a blob (FREEZE), its values are computed once, of each image and with MIRROR of its mirror
# image, and trained on from there. The jitters and shares above are left out then.
FEATURE_CACHE = 'runs/features'     # folder to keep them in, for other runs too; '': the whole net, every iteration
FEATURE_TYPE = 'float32'            # or 'float16', in half the room

# --- mini-batches ------------------------------------------------------------------------------------------------
# 'shuffled': single images; 'identities': BATCH_SIZE / IMAGES_PER_IDENTITY identities with so many images each;
# 'anchor': one third copies of an anchor, one third its positives, one third negatives.
BATCHES = {'softmax': 'shuffled', 'triplet': 'identities'}
BATCH_SIZE = {'softmax': 64, 'triplet': 96}     # images
IMAGES_PER_IDENTITY = 6             # images, in batches of identities

# --- triplets ----------------------------------------------------------------------------------------------------
# or 'batch-hard', 'batch-all', 'distance-weighted'; 'rank-paired' goes with BATCHES 'anchor'
SELECTION = 'batch-hard'
GATHER = True                       # with several processes: triplets are selected among the images of all of them;
                                    # False: in each one's share of the mini-batch
MARGIN = 0.8                        # of squared distances, between a negative and a positive
MINE_ITERS = 0                      # with cached features: iterations between two searches of all images for negatives
                                    # that are hard, to build mini-batches around; 0: images as they come
POSITIVE_CAP = 0.0                  # an image brings no image of its identity that is farther (squared distance),
                                    # as it may be mislabelled; 0: no cap. Only with MINE_ITERS

# --- training ----------------------------------------------------------------------------------------------------
MAX_ITERS = {'softmax': 150, 'triplet': 150}            # iterations
SNAPSHOT_ITERS = 100                # iterations between snapshots; one is written at the end as well
KEEP_SNAPSHOTS = 5                  # of each stage: the last so many are kept, and the best by HELD_OUT_LIST; 0: all
LEARNING_RATE = {'softmax': 0.001, 'triplet': 0.02}     # at the start; SOLVER says how it goes on
WORKERS = 2                         # processes that read images ahead, for each that trains; 0: none
DEVICE = 'auto'                     # 'auto': the first GPU if Caffe has one, else the CPU; 'cpu'; 'gpu'; a GPU's number
SEED = 1                            # of every random draw
