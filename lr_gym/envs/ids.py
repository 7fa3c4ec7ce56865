"""The ids of the Gymnasium environments: one for each task that this package brings along.

The module imports nothing, so that `import lr_gym` can register the environments without importing
the tasks.
"""

from __future__ import annotations

__all__ = ["TASK_OF_ENV"]

# Name of the environment, without the namespace "lr_gym/" -> name of its task in TASKS.
TASK_OF_ENV: dict[str, str] = {
    "MNIST1D-MLP-v0": "mnist1d-mlp",
    "MNIST1D-MLPWide-v0": "mnist1d-mlp-wide",
    "MNIST1D-MLPLong-v0": "mnist1d-mlp-long",
    "MNIST1D-CNN-v0": "mnist1d-cnn",
    "MNIST1D-CNNFew-v0": "mnist1d-cnn-few",
    "MNIST1D-GRU-v0": "mnist1d-gru",
    "MNIST1D-Transformer-v0": "mnist1d-transformer",
    "Digits-MLP-v0": "digits-mlp",
    "Digits-CNN-v0": "digits-cnn",
    "Digits-Autoencoder-v0": "digits-autoencoder",
    "Titanic-MLP-v0": "titanic-mlp",
    "Titanic-MLPLong-v0": "titanic-mlp-long",
    "Diamonds-MLP-v0": "diamonds-mlp",
    "Flights-MLP-v0": "flights-mlp",
    "Flights-MLPFew-v0": "flights-mlp-few",
    "Quadratic-v0": "quadratic",
    "Rosenbrock-v0": "rosenbrock",
    "Logistic-v0": "logistic",
    "TeacherStudent-v0": "teacher-student",
    "IMDB-Head-v0": "imdb-head",
    "IMDB-MiniLM-v0": "imdb-minilm",
    "IMDB-BERT-v0": "imdb-bert",
    "IMDB-CharLM-v0": "imdb-char-lm",
    "CIFAR10-ResNet18-v0": "cifar10-resnet18",
    "Digits-ResNet18-v0": "digits-resnet18",
    "MNIST1D-MLPLarge-v0": "mnist1d-mlp-large",
    "IMDB-CharGPT-v0": "imdb-char-gpt",
    "IMDB-MiniLMShort-v0": "imdb-minilm-short",
    "Babies-MLP-v0": "babies-mlp",
    "Concrete-MLPFew-v0": "concrete-mlp-few",
    "MNIST1D-CNNWrong-v0": "mnist1d-cnn-wrong",
    "Adding-LSTM-v0": "adding-lstm",
    "Diamonds-NormedMLP-v0": "diamonds-normed-mlp",
    "Attrition-MLP-v0": "attrition-mlp",
    "Juice-MLPWrong-v0": "juice-mlp-wrong",
    "MNIST1D-TransformerFew-v0": "mnist1d-transformer-few",
    "IMDB-CharLMFew-v0": "imdb-char-lm-few",
    "XOR-GRU-v0": "xor-gru",
    "Weather-MLP-v0": "weather-mlp",
    "Stream-Values1-v0": "stream-values-1",
    "Stream-Values4-v0": "stream-values-4",
    "Stream-Values16-v0": "stream-values-16",
    "Stream-Values64-v0": "stream-values-64",
    "Stream-Classes2-v0": "stream-classes-2",
    "Stream-Classes16-v0": "stream-classes-16",
    "Stream-Clusters8-v0": "stream-clusters-8",
    "Stream-Clusters32-v0": "stream-clusters-32",
    "Stream-Waves-v0": "stream-waves",
    "Stream-DigitsLabels-v0": "stream-digits-labels",
    "Stream-MNIST1DLabels-v0": "stream-mnist1d-labels",
    "Stream-MNIST1DOrders-v0": "stream-mnist1d-orders",
    "Stream-DigitsGroups-v0": "stream-digits-groups",
    "Stream-Flights-v0": "stream-flights",
    "Stream-MNIST1DSteady-v0": "stream-mnist1d-steady",
}
