"""Latents: codecs, what they need of an autoencoder, and data that are latents."""

from sfumato.codec import Channels as Channels
from sfumato.codec import Codec as Codec
from sfumato.codec import Coder as Coder
from sfumato.codec import RunningChannels as RunningChannels
from sfumato.codec import whitened as whitened
from sfumato.config import Latent as Latent
from sfumato.training.latents import encoded as encoded
