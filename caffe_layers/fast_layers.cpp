#include <cstdlib>
#include <string>

#include "caffe/layer_factory.hpp"
#include "caffe/layers/fast_layers.hpp"

namespace caffe {

namespace {

// Read whenever a layer is made, so that a process can have nets of both kinds.
bool SwitchedOff() {
  const char* value = std::getenv("CAFFE_ONEDNN");
  return value != NULL && std::string(value) == "0";
}

#ifdef USE_CUDNN
const bool kDefaultEngineIsCuDnn = true;
#else
const bool kDefaultEngineIsCuDnn = false;
#endif

// The engine that a net names comes first, then cuDNN, if Caffe has it.
template <typename Parameter>
bool EngineIsOpen(const Parameter& param) {
  return param.engine() == Parameter::DEFAULT && !kDefaultEngineIsCuDnn;
}

}  // namespace

// Layers of double are only for Caffe's own tests.
template <>
shared_ptr<Layer<double> > FastLayer(const LayerParameter& param) {
  return shared_ptr<Layer<double> >();
}

// LayerRegistry::CreateLayer asks here first. NULL stands for Caffe's own.
template <>
shared_ptr<Layer<float> > FastLayer(const LayerParameter& param) {
  const string& type = param.type();
  if (SwitchedOff()) {
    return shared_ptr<Layer<float> >();
  }
  if (type == "Convolution" && EngineIsOpen(param.convolution_param())) {
    return NewOneDnnConvolution(param);
  } else if (type == "Pooling" && EngineIsOpen(param.pooling_param())) {
    return NewThreadedPooling(param);
  } else if (type == "ReLU" && EngineIsOpen(param.relu_param())) {
    return NewThreadedReLU(param);
  } else if (type == "BatchNorm") {
    return NewThreadedBatchNorm(param);
  } else if (type == "Eltwise") {
    return NewThreadedEltwise(param);
  } else if (type == "Scale") {
    return NewThreadedScale(param);
  } else if (type == "Split") {
    return NewThreadedSplit(param);
  }
  return shared_ptr<Layer<float> >();
}

}  // namespace caffe
