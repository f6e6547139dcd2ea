// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {MemberRegistry} from "../src/MemberRegistry.sol";
import {Quorum} from "../src/Quorum.sol";
import {RoundManager} from "../src/RoundManager.sol";
import {TaskBoard} from "../src/TaskBoard.sol";

/// The cheat codes of forge that these tests use.
interface Vm {
    function addr(uint256 key) external pure returns (address);
    function assertEq(uint256 left, uint256 right) external pure;
    function assertEq(address left, address right) external pure;
    function assertEq(bytes32 left, bytes32 right) external pure;
    function assertEq(bytes calldata left, bytes calldata right) external pure;
    function assertTrue(bool condition) external pure;
    function assertFalse(bool condition) external pure;
    function assume(bool condition) external pure;
    function expectEmit(address emitter) external;
    function prank(address sender) external;
    function sign(uint256 key, bytes32 digest) external pure returns (uint8 v, bytes32 r, bytes32 s);
    function snapshotGasLastCall(string calldata name) external returns (uint256);
    function warp(uint256 timestamp) external;
}

/// A federation whose keys the tests hold: seat i belongs to owner i, who signs rounds with signer i.
abstract contract Federation {
    Vm internal constant vm = Vm(address(uint160(uint256(keccak256("hevm cheat code")))));
    uint256 internal constant CURVE_ORDER =
        0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141;
    address internal constant STRANGER = address(0xBAD);

    MemberRegistry internal registry;
    TaskBoard internal board;
    RoundManager internal rounds;

    function found(uint16 n) internal {
        MemberRegistry.Member[] memory initial = new MemberRegistry.Member[](n);
        for (uint16 i = 0; i < n; ++i) {
            initial[i] = record(i);
        }
        registry = new MemberRegistry(initial);
        board = new TaskBoard(registry);
        rounds = new RoundManager(registry, board);
    }

    function ownerOf(uint256 i) internal pure returns (address) {
        return vm.addr(10_000 + i);
    }

    function signerKey(uint256 i) internal pure returns (uint256) {
        return 20_000 + i;
    }

    function signerOf(uint256 i) internal pure returns (address) {
        return vm.addr(signerKey(i));
    }

    function record(uint256 i) internal pure returns (MemberRegistry.Member memory) {
        return MemberRegistry.Member({
            role: MemberRegistry.Role.MEMBER,
            owner: ownerOf(i),
            signer: signerOf(i),
            boxKey: keccak256(abi.encode("box", i)),
            peerId: abi.encodePacked(hex"002408011220", keccak256(abi.encode("peer", i))),
            boxKeySignature: abi.encodePacked(keccak256(abi.encode("r", i)), keccak256(abi.encode("s", i)))
        });
    }

    function auditor(uint256 i) internal pure returns (MemberRegistry.Member memory r) {
        r = record(i);
        r.role = MemberRegistry.Role.AUDITOR;
        r.signer = address(0);
    }

    function nobody() internal pure returns (MemberRegistry.Member memory r) {}

    /// Send a call that must succeed.
    function does(address who, address target, bytes memory call) internal returns (bytes memory) {
        vm.prank(who);
        (bool ok, bytes memory answer) = target.call(call);
        if (!ok) {
            assembly {
                revert(add(answer, 32), mload(answer))
            }
        }
        return answer;
    }

    /// Send a call that must revert with exactly this error.
    function refuses(address who, address target, bytes memory call, bytes memory expected) internal {
        vm.prank(who);
        (bool ok, bytes memory answer) = target.call(call);
        vm.assertFalse(ok);
        vm.assertEq(answer, expected);
    }

    /// The owners of the first members approve until one more makes the quorum; return that one.
    function propose(address target, bytes memory call) internal returns (address last) {
        uint256 quorum = registry.head().quorum;
        uint16 seat = 0;
        for (uint256 count = 1; count <= quorum; ++count) {
            MemberRegistry.Member memory m = registry.memberAt(seat++);
            while (m.role != MemberRegistry.Role.MEMBER) {
                m = registry.memberAt(seat++);
            }
            last = m.owner;
            if (count < quorum) does(last, target, call);
        }
    }

    /// A quorum of owners carries an action out.
    function govern(address target, bytes memory call) internal returns (bytes memory) {
        return does(propose(target, call), target, call);
    }

    function change(uint16 index, MemberRegistry.Member memory r) internal pure returns (bytes memory) {
        return abi.encodeCall(MemberRegistry.changeMember, (index, r));
    }

    function terms() internal pure returns (TaskBoard.Terms memory) {
        return TaskBoard.Terms(keccak256("specification"), keccak256("genesis"), 3, 60, 30);
    }

    function open(bytes32 salt) internal pure returns (bytes memory) {
        return abi.encodeCall(TaskBoard.openTask, (terms(), salt));
    }

    function openTask() internal returns (uint64) {
        return abi.decode(govern(address(board), open(bytes32(uint256(board.taskCount())))), (uint64));
    }

    /// EIP-2098 signature.
    function sign(uint256 key, bytes32 digest) internal pure returns (bytes32[2] memory signature) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, digest);
        signature[0] = r;
        signature[1] = bytes32(uint256(s) | (uint256(v - 27) << 255));
    }

    /// Signatures by the signers of the set bits, in order.
    function signAll(bytes32 digest, uint256 signers) internal pure returns (bytes32[2][] memory signatures) {
        uint256 count = 0;
        for (uint256 bits = signers; bits != 0; bits &= bits - 1) {
            ++count;
        }
        signatures = new bytes32[2][](count);
        uint256 left = signers;
        for (uint256 k = 0; k < count; ++k) {
            uint256 index = Quorum.lowest(left);
            left &= left - 1;
            signatures[k] = sign(signerKey(index), digest);
        }
    }

    /// A result that the open round would accept with a quorum's signatures: everybody included.
    function result(uint64 task) internal view returns (RoundManager.RoundResult memory r) {
        (uint64 round, uint32 epoch,, bytes32 previous,) = rounds.roundState(task);
        r = RoundManager.RoundResult({
            task: task,
            round: round,
            attempt: 0,
            epoch: epoch,
            rule: keccak256("trimmed-mean"),
            previous: previous,
            manifest: keccak256(abi.encode("manifest", round)),
            model: keccak256(abi.encode("model", round)),
            scoresRoot: keccak256("root"),
            scoresDigest: keccak256(scoresOf(epoch)),
            included: registry.epochAt(epoch).active,
            rejected: 0
        });
    }

    function scoresOf(uint32 epoch) internal view returns (bytes memory scores) {
        scores = new bytes(2 * uint256(registry.sizeOf(epoch)));
        for (uint256 k = 0; k < scores.length; ++k) {
            scores[k] = bytes1(uint8(k + 1));
        }
    }

    /// Bitmap of the first members that make a quorum (of a federation without empty seats).
    function quorumBits(uint32 epoch) internal view returns (uint256) {
        return (1 << registry.quorumOf(epoch)) - 1;
    }

    function finalizing(RoundManager.RoundResult memory r, uint256 signers)
        internal
        view
        returns (bytes memory)
    {
        bytes32[2][] memory signatures = signAll(rounds.digestResult(r), signers);
        return abi.encodeCall(RoundManager.finalize, (r, signers, signatures, scoresOf(r.epoch)));
    }

    function finalizing(RoundManager.RoundResult memory r) internal view returns (bytes memory) {
        return finalizing(r, quorumBits(r.epoch));
    }

    function commitment(uint64 task, uint16 member) internal view returns (RoundManager.Commitment memory c) {
        (uint64 round, uint32 epoch,,,) = rounds.roundState(task);
        c = RoundManager.Commitment({
            task: task,
            round: round,
            epoch: epoch,
            member: member,
            cid: "bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi",
            keyHash: sha256(abi.encode(keyOf(member))),
            examples: 120,
            exponents: hex"f0f1f2f3"
        });
    }

    function keyOf(uint16 member) internal pure returns (bytes32) {
        return keccak256(abi.encode("key", member));
    }

    function committing(RoundManager.Commitment memory c, uint256 key) internal view returns (bytes memory) {
        return abi.encodeCall(RoundManager.commitDirect, (c, sign(key, rounds.digestCommitment(c))));
    }

    function committing(RoundManager.Commitment memory c) internal view returns (bytes memory) {
        return committing(c, signerKey(c.member));
    }

    function revealing(uint64 task, uint16 member) internal view returns (bytes memory) {
        (uint64 round,,,,) = rounds.roundState(task);
        return abi.encodeCall(RoundManager.revealDirect, (task, round, member, keyOf(member)));
    }
}
