#include <cstdlib>
#include <memory>
#include <new>
#include <unordered_map>
#include <vector>

#include "caffe/layers/onednn_pass.hpp"

namespace caffe {

namespace {

const size_t kAlignment = 4096;

dnnl::memory Unplaced(const dnnl::memory::desc& layout) {
  return dnnl::memory(layout, OneDnnPass::Engine(), DNNL_MEMORY_NONE);
}

}  // namespace

OneDnnArena::OneDnnArena()
    : stream_(OneDnnPass::Engine()), data_(NULL), size_(0) {}

OneDnnArena::~OneDnnArena() { free(data_); }

std::shared_ptr<OneDnnArena> OneDnnArena::Get() {
  static thread_local std::weak_ptr<OneDnnArena> of_this_thread;
  std::shared_ptr<OneDnnArena> arena = of_this_thread.lock();
  if (!arena) {
    arena.reset(new OneDnnArena());
    of_this_thread = arena;
  }
  return arena;
}

char* OneDnnArena::Reserve(size_t bytes) {
  if (bytes > size_) {
    free(data_);
    data_ = NULL;
    size_ = 0;
    void* data;
    if (posix_memalign(&data, kAlignment, bytes)) {
      throw std::bad_alloc();
    }
    data_ = static_cast<char*>(data);
    size_ = bytes;
  }
  return data_;
}

dnnl::engine& OneDnnPass::Engine() {
  // Never destroyed, as layers may outlive the statics.
  static dnnl::engine* engine = new dnnl::engine(dnnl::engine::kind::cpu, 0);
  return *engine;
}

dnnl::primitive_attr OneDnnPass::Attributes() {
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  return attributes;
}

size_t OneDnnPass::Place(const dnnl::memory::desc& what) {
  const size_t offset = scratch_;
  scratch_ += (what.get_size() + kAlignment - 1) / kAlignment * kAlignment;
  return offset;
}

void OneDnnPass::Start(const dnnl::primitive& primitive,
    const dnnl::memory::desc& scratchpad) {
  primitive_ = primitive;
  scratchpad_ = Unplaced(scratchpad);
  scratchpad_offset_ = Place(scratchpad);
}

void OneDnnPass::Operand(int argument, const dnnl::memory::desc& plain,
    const dnnl::memory::desc& wanted, Direction direction) {
  Entry entry = {argument, direction, direction == ADD || plain != wanted, 0,
                 Unplaced(plain), Unplaced(wanted), dnnl::reorder()};
  if (entry.reordered) {
    entry.offset = Place(wanted);
    dnnl::primitive_attr attributes;
    if (direction == ADD) {
      dnnl::post_ops sum;
      sum.append_sum(1);
      attributes.set_post_ops(sum);
    }
    entry.reorder = dnnl::reorder(direction == IN ?
        dnnl::reorder::primitive_desc(Engine(), plain, Engine(), wanted) :
        dnnl::reorder::primitive_desc(Engine(), wanted, Engine(), plain,
                                      attributes));
  }
  entries_.push_back(entry);
}

void OneDnnPass::Run(const std::vector<const float*>& blobs,
    OneDnnArena* arena) {
  char* scratch = arena->Reserve(scratch_);
  dnnl::stream& stream = arena->stream();
  std::unordered_map<int, dnnl::memory> arguments;
  scratchpad_.set_data_handle(scratch + scratchpad_offset_);
  arguments[DNNL_ARG_SCRATCHPAD] = scratchpad_;
  for (size_t i = 0; i < entries_.size(); ++i) {
    Entry& entry = entries_[i];
    entry.blob.set_data_handle(const_cast<float*>(blobs[i]));
    if (entry.reordered) {
      entry.own.set_data_handle(scratch + entry.offset);
      if (entry.direction == IN) {
        entry.reorder.execute(stream, entry.blob, entry.own);
      }
    }
    arguments[entry.argument] = entry.reordered ? entry.own : entry.blob;
  }
  primitive_.execute(stream, arguments);
  for (size_t i = 0; i < entries_.size(); ++i) {
    Entry& entry = entries_[i];
    if (entry.reordered && entry.direction != IN) {
      entry.reorder.execute(stream, entry.own, entry.blob);
    }
  }
  stream.wait();
}

}  // namespace caffe
