"""What a program that calls the service needs: the vocabulary of requests and answers, and clients. Knows no model and no Ray."""
