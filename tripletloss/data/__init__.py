"""Images, from their files to the arrays that a net takes; no Caffe."""
