"""Autoencoders: images to small latents and back, trained and read."""

from sfumato.autoencoding import AutoencoderConfig as AutoencoderConfig
from sfumato.autoencoding import TrainedAutoencoder as TrainedAutoencoder
from sfumato.networks.autoencoder import Autoencoder as Autoencoder
from sfumato.networks.autoencoder import AutoencoderOptions as AutoencoderOptions
from sfumato.store import read_autoencoder as read_autoencoder
from sfumato.training.reconstruction import train_autoencoder as train_autoencoder
