"""Stage three: relational heads, trained from the cache.

A head is one file in `heads.zoo`. It receives a batch of views (`heads.interface.Clips`) and
returns logits (`heads.interface.HeadOutput`). The published heads take their modules from
`heads.papers`. The other rooms train, evaluate, fine-tune, draw and report them.
"""
