#include <omp.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "caffe/layers/conv_layer.hpp"
#include "caffe/layers/fast_layers.hpp"
#include "caffe/layers/onednn_pass.hpp"
#include "caffe/layers/vector_loops.hpp"

namespace caffe {

namespace {

typedef dnnl::memory::format_tag Tag;
typedef dnnl::convolution_forward Forward;
typedef dnnl::convolution_backward_data BackwardData;
typedef dnnl::convolution_backward_weights BackwardWeights;

// With fewer, direct convolution is faster: measured for 64 to 512 channels.
const int kWinogradTiles = 48;
const int kWinogradTilesOfWeights = 24;  // in the gradient of the weights
const int kWinogradChannels = 16;
// With fewer outputs in a channel, of all images, oneDNN's reordering of the
// weights costs more than it saves.
const int64_t kOutputsWorthReordering = 32;
// With fewer products of two numbers, other threads cost more than they save.
const int64_t kProductsWorthThreads = 4 << 20;

/// What a convolution's passes depend on, besides the layer's parameters.
struct Shape {
  int num, height, width, threads;
  bool operator==(const Shape& other) const {
    return num == other.num && height == other.height &&
        width == other.width && threads == other.threads;
  }
};

/// A pass, made when it is first needed for a shape.
struct Plan {
  Plan() : shape(), covered(false) {}
  Shape shape;
  bool covered;  // whether oneDNN has a fast way for it
  OneDnnPass pass;
};

/// Limits OpenMP, and so oneDNN, to so many threads while it lives.
class ThreadLimit {
 public:
  explicit ThreadLimit(int threads) : before_(omp_get_max_threads()) {
    omp_set_num_threads(threads);
  }
  ~ThreadLimit() { omp_set_num_threads(before_); }

 private:
  const int before_;

  DISABLE_COPY_AND_ASSIGN(ThreadLimit);
};

// oneDNN's slowest ways are slower than Caffe's own.
template <typename Descriptor>
bool IsFast(const Descriptor& descriptor) {
  return string(descriptor.impl_info_str()).find("ref") == string::npos;
}

}  // namespace

/**
 * @brief Convolution by oneDNN: Winograd's algorithm for large batches of
 *        3 x 3 kernels, vectorised loops otherwise.
 *
 * The rest is left to Caffe's own: other than two spatial axes, im2col by
 * force, few outputs, and shapes for which oneDNN has only its reference.
 */
class OneDnnConvolutionLayer : public ConvolutionLayer<float> {
 public:
  explicit OneDnnConvolutionLayer(const LayerParameter& param)
      : ConvolutionLayer<float>(param) {}

 protected:
  virtual void Forward_cpu(const vector<Blob<float>*>& bottom,
      const vector<Blob<float>*>& top);
  virtual void Backward_cpu(const vector<Blob<float>*>& top,
      const vector<bool>& propagate_down, const vector<Blob<float>*>& bottom);

 private:
  typedef bool (OneDnnConvolutionLayer::*Maker)(dnnl::algorithm, OneDnnPass*);

  /**
   * @brief Makes a plan for the present shape, unless it is for that already;
   *        returns whether it can be used.
   *
   * @param winograd_tiles how many tiles are worth Winograd's algorithm
   */
  bool Prepare(Maker make, int winograd_tiles, Plan* plan);
  int64_t Tiles() const;
  int Threads() const;
  void Describe();
  Forward::primitive_desc DescribeForward(dnnl::algorithm algorithm) const;
  bool MakeForward(dnnl::algorithm algorithm, OneDnnPass* pass);
  bool MakeBackwardData(dnnl::algorithm algorithm, OneDnnPass* pass);
  bool MakeBackwardWeights(dnnl::algorithm algorithm, OneDnnPass* pass);

  Plan forward_, backward_data_, backward_weights_;
  std::shared_ptr<OneDnnArena> arena_;
  // The layouts of the blobs, and the same with the layout left to oneDNN.
  dnnl::memory::desc bottom_, weights_, bias_, top_;
  dnnl::memory::desc any_bottom_, any_weights_, any_top_;
  dnnl::memory::dims strides_, dilations_, padding_;
};

void OneDnnConvolutionLayer::Describe() {
  const int* kernel = kernel_shape_.cpu_data();
  const int* stride = stride_.cpu_data();
  const int* pad = pad_.cpu_data();
  const int* dilation = dilation_.cpu_data();
  const dnnl::memory::data_type type = dnnl::memory::data_type::f32;
  const dnnl::memory::dims bottom =
      {num_, channels_, input_shape(1), input_shape(2)};
  const dnnl::memory::dims top =
      {num_, num_output_, output_shape_[0], output_shape_[1]};
  dnnl::memory::dims weights =
      {num_output_ / group_, channels_ / group_, kernel[0], kernel[1]};
  if (group_ > 1) {
    weights.insert(weights.begin(), group_);
  }
  bottom_ = dnnl::memory::desc(bottom, type, Tag::nchw);
  weights_ = dnnl::memory::desc(weights, type,
                                group_ > 1 ? Tag::goihw : Tag::oihw);
  bias_ = bias_term_ ? dnnl::memory::desc({num_output_}, type, Tag::x) :
      dnnl::memory::desc();
  top_ = dnnl::memory::desc(top, type, Tag::nchw);
  any_bottom_ = dnnl::memory::desc(bottom, type, Tag::any);
  any_weights_ = dnnl::memory::desc(weights, type, Tag::any);
  any_top_ = dnnl::memory::desc(top, type, Tag::any);
  strides_ = {stride[0], stride[1]};
  dilations_ = {dilation[0] - 1, dilation[1] - 1};  // oneDNN counts the gaps
  padding_ = {pad[0], pad[1]};
}

// Winograd's algorithm transforms the weights and tiles of 4 x 4 outputs. With
// few tiles, the weights' share costs more than the multiplications it saves.
int64_t OneDnnConvolutionLayer::Tiles() const {
  return int64_t(num_) * ((output_shape_[0] + 3) / 4) *
      ((output_shape_[1] + 3) / 4);
}

int OneDnnConvolutionLayer::Threads() const {
  const int64_t products = int64_t(num_) * top_dim_ * blobs_[0]->count(1);
  return products < kProductsWorthThreads ? 1 : omp_get_max_threads();
}

bool OneDnnConvolutionLayer::Prepare(Maker make, int winograd_tiles,
    Plan* plan) {
  if (num_spatial_axes_ != 2 || force_nd_im2col_ ||
      int64_t(num_) * out_spatial_dim_ < kOutputsWorthReordering) {
    return false;
  }
  const Shape shape =
      {num_, input_shape(1), input_shape(2), omp_get_max_threads()};
  if (plan->shape == shape) {
    return plan->covered;
  }
  plan->shape = shape;
  plan->covered = false;
  Describe();
  std::vector<dnnl::algorithm> algorithms;
  if (channels_ >= kWinogradChannels && Tiles() >= winograd_tiles) {
    algorithms.push_back(dnnl::algorithm::convolution_winograd);
  }
  algorithms.push_back(dnnl::algorithm::convolution_direct);
  for (size_t i = 0; i < algorithms.size() && !plan->covered; ++i) {
    plan->pass = OneDnnPass();
    try {
      plan->covered = (this->*make)(algorithms[i], &plan->pass);
    } catch (const dnnl::error& error) {
      if (error.status != dnnl_unimplemented) {
        throw;
      }
    }
  }
  return plan->covered;
}

Forward::primitive_desc OneDnnConvolutionLayer::DescribeForward(
    dnnl::algorithm algorithm) const {
  const Forward::desc what = bias_term_ ?
      Forward::desc(dnnl::prop_kind::forward_training, algorithm, any_bottom_,
          any_weights_, bias_, any_top_, strides_, dilations_, padding_,
          padding_) :
      Forward::desc(dnnl::prop_kind::forward_training, algorithm, any_bottom_,
          any_weights_, any_top_, strides_, dilations_, padding_, padding_);
  return Forward::primitive_desc(what, OneDnnPass::Attributes(),
                                 OneDnnPass::Engine());
}

bool OneDnnConvolutionLayer::MakeForward(dnnl::algorithm algorithm,
    OneDnnPass* pass) {
  const Forward::primitive_desc descriptor = DescribeForward(algorithm);
  pass->Init(descriptor);
  pass->Operand(DNNL_ARG_SRC, bottom_, descriptor.src_desc(), OneDnnPass::IN);
  pass->Operand(DNNL_ARG_WEIGHTS, weights_, descriptor.weights_desc(),
                OneDnnPass::IN);
  pass->Operand(DNNL_ARG_DST, top_, descriptor.dst_desc(), OneDnnPass::OUT);
  if (bias_term_) {
    pass->Operand(DNNL_ARG_BIAS, bias_, bias_, OneDnnPass::IN);
  }
  return IsFast(descriptor);
}

// The backward passes take a forward one only as a hint.
bool OneDnnConvolutionLayer::MakeBackwardData(dnnl::algorithm algorithm,
    OneDnnPass* pass) {
  const BackwardData::primitive_desc descriptor(
      BackwardData::desc(algorithm, any_bottom_, any_weights_, any_top_,
          strides_, dilations_, padding_, padding_),
      OneDnnPass::Attributes(), OneDnnPass::Engine(),
      DescribeForward(dnnl::algorithm::convolution_direct));
  pass->Init(descriptor);
  pass->Operand(DNNL_ARG_DIFF_DST, top_, descriptor.diff_dst_desc(),
                OneDnnPass::IN);
  pass->Operand(DNNL_ARG_WEIGHTS, weights_, descriptor.weights_desc(),
                OneDnnPass::IN);
  pass->Operand(DNNL_ARG_DIFF_SRC, bottom_, descriptor.diff_src_desc(),
                OneDnnPass::OUT);
  return IsFast(descriptor);
}

bool OneDnnConvolutionLayer::MakeBackwardWeights(dnnl::algorithm algorithm,
    OneDnnPass* pass) {
  const BackwardWeights::primitive_desc descriptor(
      BackwardWeights::desc(algorithm, any_bottom_, any_weights_, any_top_,
          strides_, dilations_, padding_, padding_),
      OneDnnPass::Attributes(), OneDnnPass::Engine(),
      DescribeForward(dnnl::algorithm::convolution_direct));
  pass->Init(descriptor);
  pass->Operand(DNNL_ARG_SRC, bottom_, descriptor.src_desc(), OneDnnPass::IN);
  pass->Operand(DNNL_ARG_DIFF_DST, top_, descriptor.diff_dst_desc(),
                OneDnnPass::IN);
  // Caffe adds up the gradients of iter_size mini-batches.
  pass->Operand(DNNL_ARG_DIFF_WEIGHTS, weights_,
                descriptor.diff_weights_desc(), OneDnnPass::ADD);
  return IsFast(descriptor);
}

void OneDnnConvolutionLayer::Forward_cpu(const vector<Blob<float>*>& bottom,
    const vector<Blob<float>*>& top) {
  const ThreadLimit limit(Threads());
  if (!Prepare(&OneDnnConvolutionLayer::MakeForward, kWinogradTiles,
               &forward_)) {
    ConvolutionLayer<float>::Forward_cpu(bottom, top);
    return;
  }
  arena_ = OneDnnArena::Get();
  for (int i = 0; i < bottom.size(); ++i) {
    std::vector<const float*> blobs = {bottom[i]->cpu_data(),
        blobs_[0]->cpu_data(), top[i]->mutable_cpu_data()};
    if (bias_term_) {
      blobs.push_back(blobs_[1]->cpu_data());
    }
    forward_.pass.Run(blobs, arena_.get());
  }
}

void OneDnnConvolutionLayer::Backward_cpu(const vector<Blob<float>*>& top,
    const vector<bool>& propagate_down, const vector<Blob<float>*>& bottom) {
  const ThreadLimit limit(Threads());
  const bool to_weights = param_propagate_down_[0];
  const bool to_bottom = std::count(propagate_down.begin(),
                                    propagate_down.end(), true) > 0;
  if ((to_weights && !Prepare(&OneDnnConvolutionLayer::MakeBackwardWeights,
                              kWinogradTilesOfWeights, &backward_weights_)) ||
      (to_bottom && !Prepare(&OneDnnConvolutionLayer::MakeBackwardData,
                             kWinogradTiles, &backward_data_))) {
    ConvolutionLayer<float>::Backward_cpu(top, propagate_down, bottom);
    return;
  }
  arena_ = OneDnnArena::Get();
  for (int i = 0; i < top.size(); ++i) {
    const float* top_diff = top[i]->cpu_diff();
    if (bias_term_ && param_propagate_down_[1]) {
      AddChannelSums(num_, num_output_, out_spatial_dim_, top_diff,
                     blobs_[1]->mutable_cpu_diff());
    }
    if (to_weights) {
      backward_weights_.pass.Run({bottom[i]->cpu_data(), top_diff,
          blobs_[0]->mutable_cpu_diff()}, arena_.get());
    }
    if (propagate_down[i]) {
      backward_data_.pass.Run({top_diff, blobs_[0]->cpu_data(),
          bottom[i]->mutable_cpu_diff()}, arena_.get());
    }
  }
}

shared_ptr<Layer<float> > NewOneDnnConvolution(const LayerParameter& param) {
  return shared_ptr<Layer<float> >(new OneDnnConvolutionLayer(param));
}

}  // namespace caffe
