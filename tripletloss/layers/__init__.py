"""The Caffe Python layers that a prototxt names. They only move blobs in and out of NumPy functions.

    python_param { module: "tripletloss.layers" layer: "TripletLossLayer" param_str: "{margin: 0.2}" }

param_str is a YAML mapping. It is read, never run. Its keys are the names of config.py in small letters, and train.py
fills in those that a prototxt leaves out.
"""

from tripletloss.layers.cosine import CosineLayer
from tripletloss.layers.data import DataLayer, FeatureLayer
from tripletloss.layers.norm import Norm2Layer
from tripletloss.layers.settings import start_at
from tripletloss.layers.triplet import BatchTripletLossLayer, SelectingLayer, TripletLossLayer, TripletSelectLayer

MODULE = "tripletloss.layers"  # as a prototxt names it, wherever a layer's class is written

__all__ = [
    "MODULE", "BatchTripletLossLayer", "CosineLayer", "DataLayer", "FeatureLayer", "Norm2Layer", "SelectingLayer",
    "TripletLossLayer", "TripletSelectLayer", "start_at",
]  # fmt: skip
