#include <algorithm>
#include <vector>

#include "caffe/layers/fast_layers.hpp"
#include "caffe/layers/relu_layer.hpp"
#include "caffe/layers/vector_loops.hpp"

namespace caffe {

namespace {

// The terms are Caffe's, so that NaN and infinity come out the same, too.
CAFFE_VECTOR_LOOP
void Rectify(int n, float slope, const float* bottom, float* top) {
  #pragma GCC ivdep
  for (int i = 0; i < n; ++i) {
    top[i] = std::max(bottom[i], 0.f) + slope * std::min(bottom[i], 0.f);
  }
}

CAFFE_VECTOR_LOOP
void RectifyGradient(int n, float slope, const float* bottom,
    const float* top_diff, float* bottom_diff) {
  #pragma GCC ivdep
  for (int i = 0; i < n; ++i) {
    bottom_diff[i] = top_diff[i] *
        ((bottom[i] > 0 ? 1.f : 0.f) + slope * (bottom[i] <= 0 ? 1.f : 0.f));
  }
}

}  // namespace

/// @brief ReLU on all threads, with Caffe's bits.
class ThreadedReLULayer : public ReLULayer<float> {
 public:
  explicit ThreadedReLULayer(const LayerParameter& param)
      : ReLULayer<float>(param) {}

 protected:
  virtual void Forward_cpu(const vector<Blob<float>*>& bottom,
      const vector<Blob<float>*>& top) {
    const float slope = layer_param_.relu_param().negative_slope();
    const float* bottom_data = bottom[0]->cpu_data();
    float* top_data = top[0]->mutable_cpu_data();
    ForParts(bottom[0]->count(), [=](int first, int n) {
      Rectify(n, slope, bottom_data + first, top_data + first);
    });
  }

  virtual void Backward_cpu(const vector<Blob<float>*>& top,
      const vector<bool>& propagate_down, const vector<Blob<float>*>& bottom) {
    if (!propagate_down[0]) {
      return;
    }
    const float slope = layer_param_.relu_param().negative_slope();
    const float* bottom_data = bottom[0]->cpu_data();
    const float* top_diff = top[0]->cpu_diff();
    float* bottom_diff = bottom[0]->mutable_cpu_diff();
    ForParts(bottom[0]->count(), [=](int first, int n) {
      RectifyGradient(n, slope, bottom_data + first, top_diff + first,
                      bottom_diff + first);
    });
  }
};

shared_ptr<Layer<float> > NewThreadedReLU(const LayerParameter& param) {
  return shared_ptr<Layer<float> >(new ThreadedReLULayer(param));
}

}  // namespace caffe
