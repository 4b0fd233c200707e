#ifndef CAFFE_FAST_LAYERS_HPP_
#define CAFFE_FAST_LAYERS_HPP_

#include "caffe/layer.hpp"
#include "caffe/proto/caffe.pb.h"

namespace caffe {

// Each makes a layer that takes the place of Caffe's own of that type: it
// computes the same in less time on the CPU, and on the GPU it is Caffe's own.
shared_ptr<Layer<float> > NewOneDnnConvolution(const LayerParameter& param);
shared_ptr<Layer<float> > NewThreadedBatchNorm(const LayerParameter& param);
shared_ptr<Layer<float> > NewThreadedEltwise(const LayerParameter& param);
shared_ptr<Layer<float> > NewThreadedPooling(const LayerParameter& param);
shared_ptr<Layer<float> > NewThreadedReLU(const LayerParameter& param);
shared_ptr<Layer<float> > NewThreadedScale(const LayerParameter& param);
shared_ptr<Layer<float> > NewThreadedSplit(const LayerParameter& param);

}  // namespace caffe

#endif  // CAFFE_FAST_LAYERS_HPP_
