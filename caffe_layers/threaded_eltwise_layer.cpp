#include <vector>

#include "caffe/layers/eltwise_layer.hpp"
#include "caffe/layers/fast_layers.hpp"
#include "caffe/layers/vector_loops.hpp"

namespace caffe {

namespace {

CAFFE_VECTOR_LOOP
void WeightedSum(int n, float a, const float* x, float b, const float* y,
    float* sum) {
  #pragma GCC ivdep
  for (int i = 0; i < n; ++i) {
    sum[i] = a * x[i] + b * y[i];
  }
}

CAFFE_VECTOR_LOOP
void Times(int n, float a, const float* x, float* product) {
  #pragma GCC ivdep
  for (int i = 0; i < n; ++i) {
    product[i] = a * x[i];
  }
}

}  // namespace

/// @brief The sum of two blobs or more on all threads, in one pass over two;
///        products and maxima are left to Caffe's own.
class ThreadedEltwiseLayer : public EltwiseLayer<float> {
 public:
  explicit ThreadedEltwiseLayer(const LayerParameter& param)
      : EltwiseLayer<float>(param) {}

 protected:
  virtual void Forward_cpu(const vector<Blob<float>*>& bottom,
      const vector<Blob<float>*>& top) {
    if (op_ != EltwiseParameter_EltwiseOp_SUM || bottom.size() == 1) {
      EltwiseLayer<float>::Forward_cpu(bottom, top);
      return;
    }
    float* sum = top[0]->mutable_cpu_data();
    for (int i = 1; i < bottom.size(); ++i) {
      const float* x = i == 1 ? bottom[0]->cpu_data() : sum;
      const float* y = bottom[i]->cpu_data();
      const float a = i == 1 ? coeffs_[0] : 1;
      const float b = coeffs_[i];
      ForParts(top[0]->count(), [=](int first, int n) {
        WeightedSum(n, a, x + first, b, y + first, sum + first);
      });
    }
  }

  virtual void Backward_cpu(const vector<Blob<float>*>& top,
      const vector<bool>& propagate_down, const vector<Blob<float>*>& bottom) {
    if (op_ != EltwiseParameter_EltwiseOp_SUM) {
      EltwiseLayer<float>::Backward_cpu(top, propagate_down, bottom);
      return;
    }
    const float* top_diff = top[0]->cpu_diff();
    for (int i = 0; i < bottom.size(); ++i) {
      if (propagate_down[i]) {
        float* bottom_diff = bottom[i]->mutable_cpu_diff();
        const float a = coeffs_[i];
        ForParts(top[0]->count(), [=](int first, int n) {
          Times(n, a, top_diff + first, bottom_diff + first);
        });
      }
    }
  }
};

shared_ptr<Layer<float> > NewThreadedEltwise(const LayerParameter& param) {
  return shared_ptr<Layer<float> >(new ThreadedEltwiseLayer(param));
}

}  // namespace caffe
