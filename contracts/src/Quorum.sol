// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {AddressList} from "./AddressList.sol";

/// @title More than two thirds
/// @notice How many members make a quorum, and whether so many signed a digest.
library Quorum {
    /// @notice Fewer signatures than the epoch's quorum.
    error QuorumTooSmall(uint256 got, uint256 need);
    /// @notice The bitmap of signers does not have one bit for each signature.
    error SignerCountMismatch(uint256 signers, uint256 signatures);
    /// @notice The signature that stands for the bit `index` was not made by that seat's signer.
    error BadSignature(uint256 index);

    /// @notice floor(2n / 3) + 1: the least number that is more than two thirds of n.
    /// @dev Any two quorums of n share at least one honest member while fewer than n / 3 are malicious.
    function required(uint256 n) internal pure returns (uint256) {
        return (2 * n) / 3 + 1;
    }

    /// @notice Position of the lowest bit that is set.
    /// @param bitmap Not zero.
    function lowest(uint256 bitmap) internal pure returns (uint256 index) {
        while (bitmap & 1 == 0) {
            bitmap >>= 1;
            ++index;
        }
    }

    /// @notice Revert unless every signature is good and there are at least `need` of them.
    /// @param digest What was signed.
    /// @param list Signers by seat (AddressList); zero where nobody may sign.
    /// @param signers Bitmap by seat. The k-th signature belongs to the k-th set bit, so nobody counts twice.
    /// @param signatures EIP-2098 pairs (r, yParityAndS).
    /// @param need The quorum.
    function check(
        bytes32 digest,
        bytes memory list,
        uint256 signers,
        bytes32[2][] calldata signatures,
        uint256 need
    ) internal pure {
        uint256 count = signatures.length;
        if (count < need) revert QuorumTooSmall(count, need);
        uint256 size = AddressList.length(list);
        uint256 left = signers;
        uint256 index = 0;
        for (uint256 k = 0; k < count; ++k) {
            if (left == 0) revert SignerCountMismatch(k, count);
            while (left & 1 == 0) {
                left >>= 1;
                ++index;
            }
            if (index >= size || !isSigner(digest, AddressList.entryAt(list, index), signatures[k])) {
                revert BadSignature(index);
            }
            left >>= 1;
            ++index;
        }
        if (left != 0) revert SignerCountMismatch(_count(signers), count);
    }

    /// @notice Whether a signature over a digest is by a signer. Nothing is signed by the zero address.
    function isSigner(bytes32 digest, address signer, bytes32[2] calldata signature)
        internal
        pure
        returns (bool)
    {
        // The third value only details the failure.
        // slither-disable-next-line unused-return
        (address recovered, ECDSA.RecoverError failure,) =
            ECDSA.tryRecover(digest, signature[0], signature[1]);
        return failure == ECDSA.RecoverError.NoError && recovered == signer;
    }

    function _count(uint256 bitmap) private pure returns (uint256 bits) {
        for (; bitmap != 0; bitmap &= bitmap - 1) {
            ++bits;
        }
    }
}
