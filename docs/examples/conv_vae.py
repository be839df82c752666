"""A convolutional VAE for grey images (H, W) whose height and width are multiples of 4."""

from torch import Tensor, nn


class ConvVAE(nn.Module):
    def __init__(
        self, data_shape: tuple[int, ...], latent_size: int, parameters_per_pixel: int, width: int = 16
    ) -> None:
        super().__init__()
        height, columns = data_shape
        self.image, self.maps = (1, height, columns), (2 * width, height // 4, columns // 4)
        n_features = self.maps[0] * self.maps[1] * self.maps[2]
        self.encoder = nn.Sequential(
            nn.Conv2d(1, width, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(n_features, 2 * latent_size),
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent_size, n_features),
            nn.Unflatten(1, self.maps),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(width, parameters_per_pixel, 4, stride=2, padding=1),
        )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_var = self.encoder(x.view(-1, *self.image)).chunk(2, dim=1)
        return mean, log_var

    def decode(self, z: Tensor) -> Tensor:
        parameters: Tensor = self.decoder(z).flatten(1)
        return parameters
