#include <vector>

#include "caffe/layers/fast_layers.hpp"
#include "caffe/layers/split_layer.hpp"
#include "caffe/layers/vector_loops.hpp"

namespace caffe {

namespace {

CAFFE_VECTOR_LOOP
void Add(int n, const float* x, const float* y, float* sum) {
  #pragma GCC ivdep
  for (int i = 0; i < n; ++i) {
    sum[i] = x[i] + y[i];
  }
}

}  // namespace

/// @brief Split, whose backward pass adds on all threads, with Caffe's bits.
class ThreadedSplitLayer : public SplitLayer<float> {
 public:
  explicit ThreadedSplitLayer(const LayerParameter& param)
      : SplitLayer<float>(param) {}

 protected:
  virtual void Backward_cpu(const vector<Blob<float>*>& top,
      const vector<bool>& propagate_down, const vector<Blob<float>*>& bottom) {
    if (!propagate_down[0] || top.size() == 1) {
      SplitLayer<float>::Backward_cpu(top, propagate_down, bottom);
      return;
    }
    float* sum = bottom[0]->mutable_cpu_diff();
    for (int i = 1; i < top.size(); ++i) {
      const float* x = i == 1 ? top[0]->cpu_diff() : sum;
      const float* y = top[i]->cpu_diff();
      ForParts(count_, [=](int first, int n) {
        Add(n, x + first, y + first, sum + first);
      });
    }
  }
};

shared_ptr<Layer<float> > NewThreadedSplit(const LayerParameter& param) {
  return shared_ptr<Layer<float> >(new ThreadedSplitLayer(param));
}

}  // namespace caffe
