"""tripletloss trains embeddings with Caffe Python layers: softmax first, then FaceNet's triplet loss.

The modules beside this file are commands, `python -m tripletloss.NAME`, and `python -m tripletloss` lists them. They
parse arguments, print and set the exit status, and no other module imports them. In the order of the work:

detect    cut the faces out of photos
dataset   write list files for a folder that has a folder of images for each identity
evaluate  measure weights, or embeddings
extract   write the embeddings of images to a file
cluster   group images by identity
suspects  rank images by how probably they are mislabelled
report    write a page about a run
export    write a net with its weights as ONNX
verify    say whether two photos show the same person

train.py, beside this package, trains. Everything else is in a room, and a room imports only those above it:

base        errors, whole files, child processes, several processes, PyPI wheels
core        the mathematics, in NumPy
config      the settings (a module of its own)
data        lists, pairs files, folders of identities, images, the processes that read them
formats     Caffe's prototxts and weights, and files of embeddings
layers      the Caffe layers, which a prototxt names as tripletloss.layers
net         nets prepared for training
evaluation  embedding images, and what embeddings are good for
training    plan, checks, stages, features, mining, snapshots, health, record
reporting   pages about runs and measurements
deploy      without Caffe, from base, core, config, data and formats: ONNX export, exported models, faces in photos

tests/test_rooms.py keeps these arrows.
"""

import os

# The threads of OpenBLAS sleep soon after they have nothing to do. By default they spin for a while, and take the cores
# from the threads that then work. OpenBLAS reads this when it is loaded. Caffe with oneDNN sets it, too, but NumPy has
# an OpenBLAS of its own, and loads it earlier.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")

from tripletloss.base.command import VERSION, begin

__version__ = VERSION

begin()
